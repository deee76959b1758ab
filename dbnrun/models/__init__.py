"""Networks. Each takes its normalizer as a factory, norm(features, spatial), and knows no kind of it.

What one can choose stands in options.py, which imports no torch.
"""
