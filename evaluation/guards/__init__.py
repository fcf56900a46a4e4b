"""Guards that others trained, as detectors: a classifier, a generative guard, Qwen3Guard-Stream.

A guard reads text with a tokenizer of its own. The text is what the processed data holds: data made
with `--join original` gives the untouched response, `newline` data one with a newline after each
sentence. What run-data.sh cut off is not there either.
"""
