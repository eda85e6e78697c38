"""Measurements that train: instability between copies."""
