"""A reproduction of a study of attacks and defences on Fashion-MNIST, built on public names of casemate."""
