"""Greedy suppression as ONNX's own operator, instead of a loop over its steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gfl_jax.export.onnx.array_operators import need
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
    images, count = scores.shape
    slots, *others = equation.outvars[0].aval.shape
    need(is_static([slots]) and others == [images], equation)

    def by_class(scores, classes):
      mine = classes[:, None] == jnp.arange(num_classes)[None, :, None]
      return jnp.where(mine, scores[:, None], 0)

    def best(live):
      padded = jnp.pad(live, ((0, 0), (0, max(slots - count, 0))))
      values, index = jax.lax.top_k(padded, slots)
      real = values > 0
      return jnp.where(real, index, 0).T, real.T

    separate = graph.full(graph.call(by_class, scores, classes)[0])
    limits = constant(np.float32(iou_threshold)), constant(np.float32(0))
    arguments = [boxes, separate, int64([slots]), *limits]
    chosen = graph.op('NonMaxSuppression', arguments, ('chosen', 3), np.int64)
    where = graph.op('Gather', [chosen, int64([0, 2])], ('chosen', 2), axis=1)
    kept = graph.op('GatherND', [scores, where], ['chosen'])
    blank = graph.full(graph.call(jnp.zeros_like, scores)[0])
    live = graph.op('ScatterND', [blank, where, kept], scores.shape)
    return graph.call(best, live)

  return apply
