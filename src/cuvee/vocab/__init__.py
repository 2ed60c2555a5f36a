"""Tokenizers as data: which token has which id, how vocabularies become one, and which row each token takes.

Weights and recipes are not known here.
"""
