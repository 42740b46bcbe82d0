"""Prompts → rollouts → rewards → batches for reinforcement learning."""
