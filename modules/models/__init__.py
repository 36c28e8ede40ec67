"""Models: small files of composition over `modules/layers`. Adding one is a file and a line here."""
