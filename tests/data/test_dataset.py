"""Order, box handling and evaluation batches; everything here runs in memory."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_jax.errors import UserError
from tests.data import sets

BOX = (4, 4, 30, 40)


def _square_set(count=10):
  return sets.memory_set(sets.annotations([(64, 64)] * count, [[BOX]] * count))


def _take(batches, count):
  return list(itertools.islice(batches, count))


def _assert_same(first, second):
  for a, b in zip(first, second, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_batches_have_the_promised_form():
  batch = next(_square_set().dataset(sets.config()).train_batches(4, seed=0))
  forms = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
  assert forms == {
    'images': ((4, 64, 64, 3), 'uint8'),
    'image_sizes': ((4, 2), 'int32'),
    'boxes': ((4, 4, 4), 'float32'),
    'labels': ((4, 4), 'int32'),
    'valid': ((4, 4), 'bool'),
    'image_ids': ((4,), 'int32'),
    'scales': ((4, 2), 'float32'),
    'original_sizes': ((4, 2), 'int32'),
    'dropped_boxes': ((4,), 'int32'),
  }


def test_an_epoch_shows_every_image_and_the_next_another_order():
  dataset = _square_set(12).dataset(sets.config())
  assert dataset.steps_per_epoch(4) == 3
  batches = _take(dataset.train_batches(4, seed=0), 6)
  ids = [b['image_ids'] for b in batches]
  first, second = np.concatenate(ids[:3]), np.concatenate(ids[3:])
  assert set(first) == set(second) == set(range(1, 13))
  assert (first != second).any()


def test_the_last_batch_of_an_epoch_is_filled_up():
  dataset = _square_set(5).dataset(sets.config())
  assert dataset.steps_per_epoch(4) == 2
  batches = _take(dataset.train_batches(4, seed=0), 2)
  counts = np.bincount(np.concatenate([b['image_ids'] for b in batches]))[1:]
  assert counts.min() == 1 and counts.sum() == 8


@pytest.mark.parametrize('start', [1, 3, 7])
def test_any_step_can_be_the_first(start):
  config = sets.config(zoom=(0.7, 1.5), short_side=(32, 48))
  dataset = _square_set().dataset(config)
  straight = _take(dataset.train_batches(4, seed=3), start + 3)
  resumed = _take(dataset.train_batches(4, seed=3, start_step=start), 3)
  _assert_same(straight[start:], resumed)


def test_seeds_differ():
  dataset = _square_set().dataset(sets.config())
  a, b = (next(dataset.train_batches(8, seed=s))['image_ids'] for s in (0, 1))
  assert (a != b).any()


def test_the_checksum_is_that_of_all_that_makes_a_batch():
  base = _square_set()
  checksum = lambda whole: whole.dataset(sets.config()).checksum
  assert checksum(base) == checksum(_square_set()) < 2**32
  seen = {checksum(base)}
  annotations, pixels = base.train
  for field in dataclasses.fields(annotations):
    values = getattr(annotations, field.name).copy()
    values.flat[-2] = 1 if field.name == 'edge_sigma' else values.flat[-2] + 1
    changed = dataclasses.replace(annotations, **{field.name: values})
    for part in ('train', 'validation'):
      seen.add(checksum(dataclasses.replace(base, **{part: (changed, pixels)})))
  for name, values in {
    'class_names': ('round', 'oval'),
    'category_ids': (7, 8),
  }.items():
    seen.add(checksum(dataclasses.replace(base, **{name: values})))
  assert len(seen) == 1 + 2 * len(dataclasses.fields(annotations)) + 2


def test_shards_are_parts_of_the_whole_batch():
  dataset = _square_set().dataset(sets.config(zoom=(0.7, 1.5)))
  whole = _take(dataset.train_batches(4, seed=0), 3)
  shards = [_take(dataset.train_batches(4, seed=0, shard=(i, 2)), 3) for i in range(2)]
  joined = [
    {key: np.concatenate([left[key], right[key]]) for key in left}
    for left, right in zip(*shards, strict=True)
  ]
  _assert_same(whole, joined)
  with pytest.raises(ValueError, match='batch_size=5.*multiple'):
    next(dataset.train_batches(5, seed=0, shard=(0, 2)))


HOSTS = st.sampled_from([1, 2, 4])


def _ids(dataset, hosts, batch_size, seed, start=0, stop=None):
  """[hosts, steps, batch_size / hosts] image ids of steps of the first epoch."""
  stop = dataset.steps_per_epoch(batch_size) if stop is None else stop
  return [
    [
      b['image_ids'].tolist()
      for b in _take(
        dataset.train_batches(
          batch_size, seed=seed, start_step=start, shard=(host, hosts)
        ),
        stop - start,
      )
    ]
    for host in range(hosts)
  ]


def _per_step(shards):
  return [sum(parts, []) for parts in zip(*shards, strict=True)]


@settings(deadline=None, max_examples=25)
@given(
  landscape=st.integers(0, 11),
  portrait=st.integers(1, 9),
  hosts=st.tuples(HOSTS, HOSTS),
  per_host=st.integers(1, 3),
  seed=st.integers(0, 99),
  draw=st.data(),
)
def test_hosts_cover_an_epoch_and_may_change_in_its_middle(
  landscape, portrait, hosts, per_host, seed, draw
):
  sizes = [(48, 64)] * landscape + [(64, 48)] * portrait
  dataset = sets.memory_set(sets.annotations(sizes, [[BOX]] * len(sizes))).dataset(
    sets.config(canvas=(48, 64))
  )
  batch_size = 4 * per_host
  steps = dataset.steps_per_epoch(batch_size)
  straight = _per_step(_ids(dataset, 1, batch_size, seed))
  killed = draw.draw(st.integers(0, steps))
  before = _per_step(_ids(dataset, hosts[0], batch_size, seed, 0, killed))
  after = _per_step(_ids(dataset, hosts[1], batch_size, seed, killed, steps))
  assert before + after == straight
  counts = np.bincount(np.concatenate(straight), minlength=len(sizes) + 1)[1:]
  assert counts.min() >= 1
  # Repeated are only those that fill up the last batch of an orientation.
  filled = sum(
    -len(group) % batch_size for group in (sizes[:landscape], sizes[landscape:])
  )
  assert counts.sum() == len(sizes) + filled


@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_hosts_evaluate_each_image_once(hosts):
  sizes = [(48, 64)] * 6 + [(64, 48)] * 5
  dataset = sets.memory_set(sets.annotations(sizes, [[BOX]] * 11)).dataset(
    sets.config(canvas=(48, 64))
  )
  shards = [list(dataset.eval_batches(4, shard=(h, hosts))) for h in range(hosts)]
  assert len({len(shard) for shard in shards}) == 1  # all take part in every step
  ids = np.concatenate([b['image_ids'] for shard in shards for b in shard])
  assert sorted(ids[ids >= 0]) == list(range(1, 12))


def test_several_scales_share_the_canvases():
  """As in the 2x recipe: short sides of a range, both ends included."""
  sizes = [(48, 64)] * 20 + [(64, 48)] * 20
  dataset = sets.memory_set(sets.annotations(sizes, [[BOX]] * 40)).dataset(
    sets.config(canvas=(48, 64), short_side=(30, 48))
  )
  batches = _take(dataset.train_batches(4, seed=0), 100)
  assert {b['images'].shape[1:3] for b in batches} == set(dataset.canvases)
  short = np.concatenate([b['image_sizes'].min(-1) for b in batches])
  assert set(short) == set(range(30, 49))
  # Without the range every image covers its canvas; with it, the mean of squares.
  covered = np.mean([(x / 48) ** 2 for x in range(30, 49)])
  assert abs(dataset.canvas_covered - covered) < 0.02
  whole = sets.memory_set(sets.annotations([(48, 64), (64, 64)], [[BOX]] * 2))
  assert whole.dataset(sets.config(canvas=(48, 64))).canvas_covered == (1 + 0.75) / 2


def test_portrait_images_come_on_the_transposed_canvas():
  sizes = [(48, 64)] * 5 + [(64, 48)] * 3
  split = sets.annotations(sizes, [[BOX]] * 8)
  dataset = sets.memory_set(split).dataset(sets.config(canvas=(48, 64)))
  assert dataset.canvases == ((48, 64), (64, 48))
  batches = _take(dataset.train_batches(2, seed=0), dataset.steps_per_epoch(2))
  for batch in batches:
    height, width = batch['images'].shape[1:3]
    assert (batch['original_sizes'] == (height, width)).all()
  assert len({b['images'].shape for b in batches}) == 2
  assert set(np.concatenate([b['image_ids'] for b in batches])) == set(range(1, 9))
  ids = np.concatenate([b['image_ids'] for b in dataset.eval_batches(2)])
  assert sorted(ids[ids > 0]) == list(range(1, 9))


def test_crowd_degenerate_and_overflowing_boxes():
  nan, inverted, crowd = (np.nan, 0, 9, 9), (20, 20, 10, 30), (0, 0, 60, 60)
  good = [(i, 0, i + 10, 10) for i in range(6)]
  split = sets.annotations([(48, 48)], [[nan, inverted, crowd, *good]], crowd=[2])
  dataset = sets.memory_set(split).dataset(sets.config(flip=0.0))
  batch = next(dataset.train_batches(1, seed=0))
  np.testing.assert_array_equal(batch['boxes'][0], good[:4])
  np.testing.assert_array_equal(batch['labels'][0], [1, 0, 1, 0])
  assert batch['valid'].all()
  assert batch['dropped_boxes'] == [2]
  assert dataset.counters == {
    'images_without_boxes': 0,
    'images_too_small': 0,
    'crowd_boxes': 1,
    'degenerate_boxes': 2,
    'overflowing_boxes': 2,
    'bad_images': 0,
  }


def test_training_leaves_out_what_the_recipe_leaves_out():
  """Images without annotations and small ones; not those with only a crowd."""
  sizes = [(48, 48), (48, 48), (31, 48), (48, 48)]
  split = sets.annotations(sizes, [[BOX], [], [BOX], [BOX]], crowd=[2])
  dataset = sets.memory_set(split).dataset(sets.config(max_long_side=48))
  assert dataset.num_train == 2
  assert dataset.counters['images_without_boxes'] == 1
  assert dataset.counters['images_too_small'] == 1
  batch = next(dataset.train_batches(2, seed=0))
  order = np.argsort(batch['image_ids'])
  assert batch['image_ids'][order].tolist() == [1, 4]
  assert batch['valid'].sum(-1)[order].tolist() == [1, 0]
  assert dataset.num_eval == 4


def test_evaluation_keeps_all_images_and_pads_the_last_batch():
  split = sets.annotations([(48, 48)] * 5, [[BOX], [], [BOX], [BOX], []])
  dataset = sets.memory_set(split).dataset(sets.config(zoom=(2.0, 2.0)))
  batches = list(dataset.eval_batches(4))
  ids = np.concatenate([b['image_ids'] for b in batches])
  assert ids.tolist() == [1, 2, 3, 4, 5, -1, -1, -1]
  padding = {key: value[1:] for key, value in batches[1].items()}
  assert not padding['valid'].any() and not padding['images'].any()
  assert not padding['image_sizes'].any() and not padding['original_sizes'].any()
  assert (padding['scales'] == 1).all()
  halves = [list(dataset.eval_batches(4, shard=(i, 2))) for i in range(2)]
  assert halves[1][1]['image_ids'].tolist() == [-1, -1]
  assert dataset.eval_image_ids(4) == [1, 2, 3, 4, 5]
  assert dataset.eval_image_ids(4, shard=(0, 2)) == [1, 2, 5]
  assert dataset.eval_image_ids(4, shard=(1, 2)) == [3, 4]


def test_scales_take_canvas_pixels_back_to_the_original():
  split = sets.annotations([(96, 128)], [[(8, 16, 40, 80)]])
  images = sets.memory_pixels([np.zeros((48, 64, 3), np.uint8)])
  whole = sets.memory_set(split)
  whole = type(whole)(
    whole.class_names, whole.category_ids, (split, images), (split, images)
  )
  batch = next(whole.dataset(sets.config()).eval_batches(1))
  scale = np.tile(batch['scales'], 2)[:, None]
  np.testing.assert_allclose(batch['boxes'][:, :1] / scale, [[[8, 16, 40, 80]]])


def test_ground_truth_is_coco_json():
  boxes = [[(1, 2, 11, 22), (5, 5, 5, 9), (0, 0, 40, 40)], []]
  split = sets.annotations([(48, 48)] * 2, boxes, crowd=[2], first_id=5)
  split.edge_sigma[0] = (1, 2, 3, 4)
  split.edge_kind[0] = (0, 3, 1, 2)
  truth = sets.memory_set(split).dataset(sets.config()).ground_truth()
  assert truth['images'] == [{'id': i, 'height': 48, 'width': 48} for i in (5, 6)]
  assert truth['categories'] == [
    {'id': 7, 'name': 'round'}, {'id': 9, 'name': 'square'}
  ]  # fmt: skip
  box, crowd = truth['annotations']  # the box without an area is gone
  assert box == {
    'id': 1, 'image_id': 5, 'category_id': 7, 'bbox': [1, 2, 10, 20], 'area': 200.0,
    'iscrowd': 0, 'edge_sigma': [1, 2, 3, 4],
    'edge_kind': ['sharp', 'occluded', 'blurred', 'faded'],
  }  # fmt: skip
  assert crowd['iscrowd'] == 1 and not {'edge_sigma', 'edge_kind'} & set(crowd)


@pytest.mark.parametrize('label', [-1, 2])
def test_labels_outside_the_classes_are_refused(label):
  split = sets.annotations([(48, 48)], [[BOX]], first_id=31)
  split.labels[0] = label
  with pytest.raises(ValueError, match=f'label {label} .*image 31 .*0..1'):
    sets.memory_set(split).dataset(sets.config())


def test_nothing_to_train_on_is_an_error():
  split = sets.annotations([(48, 48)], [[]])
  with pytest.raises(ValueError, match="training.*'images_without_boxes': 1"):
    sets.memory_set(split).dataset(sets.config())


def test_nothing_but_crowds_is_nothing_to_learn():
  crowds = sets.annotations([(64, 64)] * 2, [[BOX], [BOX]], crowd=(0, 1))
  with pytest.raises(UserError, match='2 of 2 .*crowds'):
    sets.memory_set(crowds).dataset(sets.config())


def test_boxes_as_shares_of_the_image_are_warned_of(caplog):
  share = (0.1, 0.2, 0.6, 0.9)
  # That of a whole image is large enough to be a box.
  shares = sets.annotations([(64, 64)] * 2, [[share], [(0, 0, 1, 1)]])
  with pytest.raises(UserError, match='2 of 2 .*0..1'):
    sets.memory_set(shares).dataset(sets.config())
  mixed = sets.annotations([(64, 64)] * 2, [[share], [BOX]])
  sets.memory_set(mixed).dataset(sets.config())
  assert '1 of 2 training boxes' in caplog.text
  assert '1 of 2 evaluation boxes' in caplog.text
  caplog.clear()
  _square_set().dataset(sets.config())
  assert not caplog.text


def test_an_evaluation_split_without_boxes_is_warned_of(caplog):
  empty = sets.annotations([(64, 64)], [[]])
  dataset = sets.memory_set(sets.annotations([(64, 64)], [[BOX]]), empty)
  dataset.dataset(sets.config())
  assert 'no AP' in caplog.text


def test_images_without_boxes_are_kept_if_wanted():
  split = sets.annotations([(64, 64), (64, 64), (20, 64)], [[BOX], [], []])
  dataset = sets.memory_set(split).dataset(sets.config(keep_empty=True))
  assert dataset.num_train == 2
  assert dataset.counters['images_without_boxes'] == 0
  assert dataset.counters['images_too_small'] == 1
  batch = next(dataset.train_batches(2, seed=0))
  assert sorted(batch['valid'].sum(-1)) == [0, 1]


def test_sizes_of_boxes_on_the_canvas_and_classes_without_boxes():
  sizes, boxes = [(32, 64), (64, 64)], [[(0, 0, 40, 16)], [(8, 8, 90, 24)]]
  split = sets.annotations(sizes, boxes)
  dataset = sets.memory_set(split).dataset(
    sets.config(short_side=(24, 48), max_long_side=64)
  )
  # The first stays as it is, the second shrinks to 48 px and is cut at its border.
  np.testing.assert_allclose(dataset.train_box_sizes, [(40, 16), (42, 12)])
  assert dataset.unused_classes == []
  one_class = sets.memory_set(sets.annotations([(64, 64)], [[BOX]]))
  assert one_class.dataset(sets.config()).unused_classes == ['square']
