"""Our own fusions, and one that a user might write, under the shipped contract."""

from __future__ import annotations

from langchain_ensemble.fusion import Average, Deepen, Gac, Unite
from langchain_ensemble.fusion.base import Fusion
from langchain_ensemble.testing import FusionContract


class TestGeometricAverage(FusionContract):
    def fusion(self) -> Fusion:
        return Average()


class TestArithmeticAverage(FusionContract):
    def fusion(self) -> Fusion:
        return Average(mean="arithmetic")


class TestGac(FusionContract):
    def fusion(self) -> Fusion:
        return Gac()


class TestUnite(FusionContract):
    truncates = True

    def fusion(self) -> Fusion:
        return Unite(union_k=3)


class TestUniteWholeVocabulary(FusionContract):
    truncates = True

    def fusion(self) -> Fusion:
        return Unite(union_k=100)


class TestDeepenDense(FusionContract):
    def fusion(self) -> Fusion:
        return Deepen(anchors=4, dense=True)


class TestDeepenSupport(FusionContract):
    def fusion(self) -> Fusion:
        return Deepen(anchors=4, dense=False, support_cap=6)
