"""Training TAP: stage 1 (masks, IoU, concepts) and stage 2 (captions)."""
