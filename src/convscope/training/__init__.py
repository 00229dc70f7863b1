"""Training: the drop-in for ``model.fit``, its loop, its schedules."""
