"""What region tokens are for: stores of tokens, search, classifiers and soft prompts."""
