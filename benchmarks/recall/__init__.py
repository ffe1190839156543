"""Associative recall: which attentions find one token among many."""
