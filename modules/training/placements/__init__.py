"""Where a model's variables live and where its steps run; the model's code never knows."""
