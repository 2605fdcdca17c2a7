"""From predictions to detections, COCO metrics and diagnostics."""
