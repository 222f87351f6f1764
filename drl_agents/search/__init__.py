"""The search for hyper-parameters: space, objective, study. The one door to Optuna."""
