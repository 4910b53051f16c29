"""Pretrained models whose weights and labelled data come with packages; extra ``pretrained``."""
