"""Illusions: what anagrams and hybrids share.

Views and filters, how they act on a model's samples, larger stages, the search among seeds, and animations. Sources:
Geng et al., Visual Anagrams, arXiv:2311.17919; Factorized Diffusion, arXiv:2404.11615.
"""
