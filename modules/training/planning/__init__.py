"""What a spec costs on a cluster, before anything of it is trained: see docs/planning.md."""
