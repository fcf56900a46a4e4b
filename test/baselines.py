"""Tests the baselines: what a bag of words, or the length alone, reaches (scripts/run-floor.sh).

Both are fitted on complete responses; partial detection judges every prefix by the same classifier.
"""

from collections.abc import Sequence
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
from test.testing import run_evaluation
from utils.files import InputError
from utils.run_record import run_folder

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # inverse regularisation, the best on validation is kept


def responses_of(examples: Examples) -> list[np.ndarray]:
    """Returns the token ids of each response, [N] arrays [T]."""
    pairs = zip(examples.input_ids, examples.response_start, strict=True)
    return [ids[start:] for ids, start in pairs]


def main(config: BaselineConfig) -> None:
    """Fits on train, picks the regularisation on validation, reports."""
    with run_folder(config) as folder:
        data = load_processed(Path(config.data_dir), tokenizer=None)
        tokenizer = load_tokenizer(data.folder / "tokenizer")

        if config.method == "length":
            features = make_pipeline(FunctionTransformer(np.log), StandardScaler())
        else:
            features = TfidfVectorizer(analyzer=terms, min_df=2, sublinear_tf=True)

        def inputs_of(responses: Sequence[np.ndarray]) -> list[str] | np.ndarray:
            if config.method == "length":
                return np.array([[len(ids)] for ids in responses])
            return tokenizer.batch_decode([ids.tolist() for ids in responses])

        train, valid = load_examples(data, "train"), load_examples(data, "valid")
        try:
            train_features = features.fit_transform(inputs_of(responses_of(train)))
        except ValueError:  # no term is left
            raise InputError(f"{data.folder}: split 'train': no word is in two responses") from None

        def fit(strength: float) -> Pipeline:
            classifier = LogisticRegression(C=strength, max_iter=1000)
            return make_pipeline(features, classifier.fit(train_features, train.response_label))

        def probabilities(pipeline: Pipeline, inputs: list[str] | np.ndarray) -> np.ndarray:
            return pipeline.predict_proba(inputs)[:, 1].astype(np.float32)

        def quality(pipeline: Pipeline) -> float:
            return roc_auc_score(valid.response_label, probabilities(pipeline, valid_inputs))

        valid_inputs = inputs_of(responses_of(valid))
        best = max(map(fit, STRENGTHS), key=quality)

        def score(examples: Examples, split: str) -> Scores:
            responses, token_probs = responses_of(examples), None
            if config.detection == "partial":
                prefixes = (
                    [ids[:length] for length in range(1, len(ids) + 1)]
                    for ids in tqdm(responses, split, unit="response")
                )
                token_probs = [probabilities(best, inputs_of(some)) for some in prefixes]
            return Scores(token_probs, probabilities(best, inputs_of(responses)))

        names = {"tfidf": "TF-IDF + logistic regression", "length": "response length alone"}
        run_evaluation(config, data, config.method, names[config.method], score, folder)
