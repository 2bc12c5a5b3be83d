"""torch.export: a program without weights, which it finds in the bundle by name."""
