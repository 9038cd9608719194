"""A task of its own, regression of points near planes: what adding one takes, and quick to train."""
