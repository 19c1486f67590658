"""What the documentation site is built with, besides docs/ and mkdocs.yml."""
