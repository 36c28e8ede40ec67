"""What the model server and the knowledge centre share: the gRPC port, TLS, draining."""
