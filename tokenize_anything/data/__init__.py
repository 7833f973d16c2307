"""Training data: readers, augmentation, prompt sampling."""
