"""Pages about runs and studies, made from the files in their folders alone."""
