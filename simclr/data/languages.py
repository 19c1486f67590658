"""Words for splits in other languages than English, as names of folders and as values in tables."""

from __future__ import annotations

import unicodedata

# Spanish, Portuguese, Italian, French, German, Dutch, Scandinavian, Polish, Czech, Turkish, Indonesian, Russian,
# Chinese, Japanese and Korean, without those that English has too.
OTHER_NAMES = {
    "train": (
        *("entrenamiento", "entreno", "treino", "treinamento", "addestramento", "allenamento", "apprentissage"),
        *("entraînement", "trainings", "trainieren", "träning", "træning", "trening", "treningowy", "treningowe"),
        *("uczący", "uczące", "trénink", "trénovací", "eğitim", "latih", "pelatihan", "обучение", "обучающая"),
        *("обучающие", "тренировочная", "训练", "訓練", "学習", "훈련", "학습"),
    ),
    "val": (
        *("validación", "validação", "validazione", "convalida", "validierung", "validierungs", "validatie"),
        *("validering", "walidacja", "walidacyjny", "walidacyjne", "validace", "validační", "doğrulama", "validasi"),
        *("валидация", "валидационная", "验证", "驗證", "検証", "검증"),
    ),
    "test": (
        *("prueba", "pruebas", "evaluación", "teste", "testes", "avaliação", "prova", "prove", "verifica"),
        *("valutazione", "essai", "essais", "évaluation", "prüfung", "prüf", "testen", "evaluierung", "toets"),
        *("testowy", "testowe", "testovací", "uji", "pengujian", "тест", "тестовая", "тестовые", "测试", "測試"),
        *("テスト", "評価", "테스트", "평가"),
    ),
}
ENDINGS = ("set", "sets", "dataset", "data", "daten", "images", "imgs", "集")  # as in trainset, Testdaten and 训练集


def without_accents(name: str) -> str:
    """A name whose letters have lost their accents."""
    return "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))


def bare(name: str) -> str:
    """A name without capitals and accents."""
    return without_accents(name).casefold()
