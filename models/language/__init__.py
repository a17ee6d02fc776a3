"""Language models: decoding behind a shared prefix, validation of captions, captions as categorical features."""
