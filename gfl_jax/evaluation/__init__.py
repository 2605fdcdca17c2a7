"""From predictions to detections, COCO metrics and the report of a run."""
