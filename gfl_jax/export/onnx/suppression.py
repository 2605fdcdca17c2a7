"""Greedy suppression as ONNX's own operator, instead of a loop over its steps."""

import dataclasses
from collections.abc import Callable

import numpy as np

from gfl_jax.export.onnx.arrays import need
from gfl_jax.export.onnx.graph import constant, int64, is_static


def class_aware_nms(*, iou_threshold: float, num_classes: int) -> Callable:
  """The operator for the function `ops.nms.class_aware_nms`, vmapped over images.

  NonMaxSuppression takes the boxes of each class by falling score (equal scores by
  index) and drops each box that overlaps one already taken by more than the threshold.
  Classes do not compete, so the best over all classes are what the function returns.

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
    of_class = [graph.reshape(classes, rows), each_class]
    mine = graph.op('Equal', of_class, shape, bool)
    nothing = constant(np.zeros((), scores.dtype))
    by_class = [mine, graph.reshape(scores, rows), nothing]
    by_class = graph.op('Where', by_class, shape, scores.dtype)
    limits = constant(np.float32(iou_threshold)), constant(np.zeros((), np.float32))
    arguments = [boxes, by_class, int64([slots]), *limits]
    chosen = graph.op('NonMaxSuppression', arguments, ('chosen', 3), np.int64)
    where = graph.op('Gather', [chosen, int64([0, 2])], ('chosen', 2), axis=1)
    kept = graph.op('GatherND', [scores, where], ['chosen'])
    zeros = constant(np.zeros((1, 1), scores.dtype))
    blank = graph.full(dataclasses.replace(zeros, shape=scores.shape))
    live = graph.op('ScatterND', [blank, where, kept], scores.shape)
    ends = int64([0, 0, 0, max(slots - count, 0)])
    live = graph.op('Pad', [live, ends], (images, max(slots, count)))
    best, index = graph.node(
      'TopK',
      [live, int64([slots])],
      [(scores.dtype, (images, slots)), (np.int64, (images, slots))],
      axis=1,
    )
    real = graph.op('Greater', [best, nothing], best.shape, bool)
    index = graph.op('Where', [real, index, int64([0])], best.shape, np.int64)
    index = graph.cast(index, indices.dtype)
    return [graph.transpose(x, (1, 0)) for x in (index, real)]

  return apply
