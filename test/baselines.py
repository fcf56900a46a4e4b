"""Tests the baselines: what a bag of words, or the length alone, reaches (scripts/run-floor.sh).

Both are fitted on complete responses; partial detection judges every prefix by the same classifier.
"""

from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from tqdm import tqdm

from data.splits import Examples, load_examples, load_processed
from data.terms import terms
from data.tokenization import load_tokenizer
from evaluation.predict import Scores
from test.options import BaselineConfig
from test.testing import run_evaluation, test_folder
from utils.files import InputError

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # inverse regularisation, the best on validation is kept


def main(config: BaselineConfig) -> None:
    """Fits on train, picks the regularisation on validation, reports."""
    with test_folder(config) as folder:
        data = load_processed(Path(config.data_dir), tokenizer=None)
        tokenizer = load_tokenizer(data.folder / "tokenizer")
        examples = {name: load_examples(data, name) for name in ("train", "valid", "test")}

        def features_of(examples: Examples) -> list[str] | np.ndarray:
            if config.method == "length":
                return examples.response_lengths[:, None]
            responses = zip(examples.input_ids, examples.response_start, strict=True)
            return tokenizer.batch_decode([ids[start:].tolist() for ids, start in responses])

        inputs = {name: features_of(split) for name, split in examples.items()}

        if config.method == "length":
            features = make_pipeline(FunctionTransformer(np.log), StandardScaler())
        else:
            features = TfidfVectorizer(analyzer=terms, min_df=2, sublinear_tf=True)
        try:
            train_features = features.fit_transform(inputs["train"])
        except ValueError:  # no term is left
            raise InputError(f"{data.folder}: split 'train': no word is in two responses") from None

        def fit(strength: float) -> Pipeline:
            classifier = LogisticRegression(C=strength, max_iter=1000)
            return make_pipeline(
                features, classifier.fit(train_features, examples["train"].response_label)
            )

        def probabilities(pipeline: Pipeline, split: str) -> np.ndarray:
            return pipeline.predict_proba(inputs[split])[:, 1].astype(np.float32)

        pipelines = [fit(strength) for strength in STRENGTHS]
        label = examples["valid"].response_label
        best = max(pipelines, key=lambda one: roc_auc_score(label, probabilities(one, "valid")))

        def prefix_probabilities(response: np.ndarray) -> np.ndarray:
            """Judges each prefix of one response, float [T]."""
            lengths = range(1, len(response) + 1)
            if config.method == "length":
                return best.predict_proba(np.array(lengths)[:, None])[:, 1]
            texts = tokenizer.batch_decode([response[:length].tolist() for length in lengths])
            return best.predict_proba(texts)[:, 1]

        def score(split_examples: Examples, split: str) -> Scores:
            token_probs = None
            if config.detection == "partial":
                pairs = zip(split_examples.input_ids, split_examples.response_start, strict=True)
                token_probs = [
                    prefix_probabilities(ids[start:]).astype(np.float32)
                    for ids, start in tqdm(pairs, split, len(split_examples), unit="response")
                ]
            return Scores(token_probs, probabilities(best, split))

        names = {"tfidf": "TF-IDF + logistic regression", "length": "response length alone"}
        run_evaluation(config, data, config.method, names[config.method], score, folder)
