"""What it would cost: training and serving from first principles, break-even, algorithms against scale. No torch.

What it did cost is kept in the room cost; here are predictions, each with its assumptions named.
"""
