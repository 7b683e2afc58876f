"""Mod-Squad at scale: one mixture-of-experts vision model for data sets that each label one task, in modules that can be taken out."""
