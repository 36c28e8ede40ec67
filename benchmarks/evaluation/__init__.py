"""How fast and how exact the evaluation is, on KuaiRand-Pure's test split."""
