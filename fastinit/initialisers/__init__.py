"""What torch.nn.init's functions compute before they draw, and those that are more than a draw."""
