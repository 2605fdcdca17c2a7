"""Greedy suppression as ONNX's own operator, instead of a loop over its steps."""

import dataclasses
from collections.abc import Callable

import numpy as np

from gfl_jax.export.onnx.arrays import int64, need
from gfl_jax.export.onnx.graph import constant, is_static


def class_aware_nms(*, iou_threshold: float, num_classes: int) -> Callable:
  """What stands for the function `ops.nms.class_aware_nms`, vmapped over images.

  NonMaxSuppression takes boxes of one class after the other, by falling score, equal
  ones by their index, and drops what overlaps one taken by more than the threshold. As
  classes do not compete, the best over all of them are those that the function takes.

  Args:
    iou_threshold: that of the call.
    num_classes: above every class of the call.
  """

  def apply(graph, equation, inputs):
    boxes, scores, classes = (graph.full(x) for x in inputs)
    indices, valid = (v.aval for v in equation.outvars)
    images, count = scores.shape
    slots = indices.shape[0]
    need(is_static([slots]) and indices.shape[1:] == (images,), equation)

    each_class = constant(np.arange(num_classes, dtype=np.int32).reshape(1, -1, 1))
    rows, shape = (images, 1, count), (images, num_classes, count)
    (mine,) = graph.node(
      'Equal', [graph.reshape(classes, rows), each_class], [(bool, shape)]
    )
    nothing = constant(np.zeros((), scores.dtype))
    (by_class,) = graph.node(
      'Where', [mine, graph.reshape(scores, rows), nothing], [(scores.dtype, shape)]
    )
    limits = constant(np.float32(iou_threshold)), constant(np.zeros((), np.float32))
    (chosen,) = graph.node(
      'NonMaxSuppression',
      [boxes, by_class, int64([slots]), *limits],
      [(np.int64, ('chosen', 3))],
    )
    (where,) = graph.node(
      'Gather', [chosen, int64([0, 2])], [(np.int64, ('chosen', 2))], axis=1
    )
    (kept,) = graph.node('GatherND', [scores, where], [(scores.dtype, ('chosen',))])
    zeros = constant(np.zeros((1, 1), scores.dtype))
    blank = graph.full(dataclasses.replace(zeros, shape=scores.shape))
    (live,) = graph.node(
      'ScatterND', [blank, where, kept], [(scores.dtype, scores.shape)]
    )
    ends = int64([0, 0, 0, max(slots - count, 0)])
    (live,) = graph.node(
      'Pad', [live, ends], [(scores.dtype, (images, max(slots, count)))]
    )
    best, index = graph.node(
      'TopK',
      [live, int64([slots])],
      [(scores.dtype, (images, slots)), (np.int64, (images, slots))],
      axis=1,
    )
    (real,) = graph.node('Greater', [best, nothing], [(bool, (images, slots))])
    (index,) = graph.node(
      'Where', [real, index, int64([0])], [(np.int64, (images, slots))]
    )
    index = graph.cast(index, indices.dtype)
    return [graph.transpose(x, (1, 0)) for x in (index, real)]

  return apply
