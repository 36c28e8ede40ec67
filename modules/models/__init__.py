"""Models: small compositions of `modules/layers`. Adding one is a file and a line here."""
