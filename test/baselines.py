"""Tests the baselines: what a bag of words, or the length alone, reaches (scripts/run-floor.sh).

Both are fitted on complete responses; partial detection judges every prefix by the same classifier.
"""

from pathlib import Path
from typing import Any

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
from test.options import BaselineConfig, BaselineMethod
from test.testing import run_evaluation
from utils.files import InputError
from utils.run_record import run_folder

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # inverse regularisation, the best on validation is kept
NAMES = {"tfidf": "TF-IDF + logistic regression", "length": "response length alone"}


def fit_best(
    method: BaselineMethod, inputs: dict[str, Any], labels: dict[str, np.ndarray], where: str
) -> Pipeline:
    """Fits on train and keeps the regularisation that validation ranks best by AUROC.

    Args:
        method: "tfidf", or "length".
        inputs: Of each split, N texts; of "length" their lengths, (N, 1).
        labels: Of each split, int [N].
        where: Where they come from, for messages.

    Raises:
        InputError: No word is in two texts.
    """
    if method == "length":
        features = make_pipeline(FunctionTransformer(np.log), StandardScaler())
    else:
        features = TfidfVectorizer(analyzer=terms, min_df=2, sublinear_tf=True)
    try:
        fitted = features.fit_transform(inputs["train"])
    except ValueError:  # no term is left
        raise InputError(f"{where}: split 'train': no word is in two texts") from None

    def fit(strength: float) -> Pipeline:
        classifier = LogisticRegression(C=strength, max_iter=1000)
        return make_pipeline(features, classifier.fit(fitted, labels["train"]))

    def auroc(pipeline: Pipeline) -> float:
        scores = pipeline.predict_proba(inputs["valid"])[:, 1].astype(np.float32)
        return roc_auc_score(labels["valid"], scores)

    return max(map(fit, STRENGTHS), key=auroc)


def main(config: BaselineConfig) -> None:
    """Fits on train, picks the regularisation on validation, reports."""
    with run_folder(config) as folder:
        data = load_processed(Path(config.data_dir), tokenizer=None)
        tokenizer = load_tokenizer(data.folder / "tokenizer")
        examples = {name: load_examples(data, name) for name in ("train", "valid", "test")}
        responses = {}
        for name, split in examples.items():
            pairs = zip(split.input_ids, split.response_start, strict=True)
            responses[name] = [ids[start:] for ids, start in pairs]

        def inputs_of(texts: list[np.ndarray]) -> list[str] | np.ndarray:
            """Returns what a method reads of N texts, given as token ids."""
            if config.method == "length":
                return np.array([[len(ids)] for ids in texts])
            return tokenizer.batch_decode([ids.tolist() for ids in texts])

        inputs = {name: inputs_of(texts) for name, texts in responses.items()}
        labels = {name: split.response_label for name, split in examples.items()}
        best = fit_best(config.method, inputs, labels, str(data.folder))

        def probabilities(split: str) -> np.ndarray:
            return best.predict_proba(inputs[split])[:, 1].astype(np.float32)

        def prefix_probabilities(response: np.ndarray) -> np.ndarray:
            """Judges each prefix of one response, float32 [T]."""
            prefixes = [response[:length] for length in range(1, len(response) + 1)]
            return best.predict_proba(inputs_of(prefixes))[:, 1].astype(np.float32)

        def score(_: Examples, split: str) -> Scores:
            token_probs = None
            if config.detection == "partial":
                bar = tqdm(responses[split], split, unit="response")
                token_probs = [prefix_probabilities(response) for response in bar]
            return Scores(token_probs, probabilities(split))

        run_evaluation(config, data, config.method, NAMES[config.method], score, folder)
