"""Contrast and colour-blindness, computed for both themes."""

import itertools

import numpy as np
import pytest

from puzzlebench.reporting.palette import (
    HEAT_DARK,
    HEAT_LIGHT,
    MARKS,
    TEXT,
    THEMES,
    contrast,
    style_variables,
)

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
DEFICIENCIES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    parts = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB under D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    scaled = np.clip(np.array(to_xyz) @ rgb, 0, None) / np.array([0.9505, 1.0, 1.089])
    bent = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * bent[1] - 16, 500 * (bent[0] - bent[1]), 200 * (bent[1] - bent[2])])


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast("#0b62a8", "#0b62a8") == 1


@pytest.mark.parametrize("theme", THEMES)
def test_text_and_marks_stand_out(theme):
    colours = THEMES[theme]
    for name, ground in itertools.product(TEXT, ("ground", "raised")):
        assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in MARKS:
        assert contrast(colours[name], colours["ground"]) >= 3, name
    for name in ("attention", "ffn", "ends"):  # numbers on bars are in the ground's colour
        assert contrast(colours[name], colours["ground"]) >= 4.5, name
    for name in ("accent", "attention", "ffn", "term3"):  # names at the ends of curves
        assert contrast(colours[name], colours["ground"]) >= 4.5, name


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_parts_and_models_stay_apart_for_the_colour_blind(theme, deficiency):
    matrix = np.array(DEFICIENCIES[deficiency])
    seen = {name: lab(np.clip(matrix @ linear(THEMES[theme][name]), 0, 1)) for name in MARKS}
    for one, other in (("attention", "ffn"), ("attention", "ends"), ("ffn", "ends"), ("accent", "parent")):
        assert np.linalg.norm(seen[one] - seen[other]) > 14, (one, other)


@pytest.mark.parametrize(("heat", "sign"), [(HEAT_LIGHT, -1), (HEAT_DARK, 1)])
def test_heat_is_ordered_by_lightness_for_everybody(heat, sign):
    for matrix in (np.eye(3), *map(np.array, DEFICIENCIES.values())):
        lightness = [lab(np.clip(matrix @ linear(colour), 0, 1))[0] for colour in heat]
        assert np.all(sign * np.diff(lightness) > 3)


def test_style_has_both_themes_and_paper_is_light():
    style = style_variables()
    assert style.count("--ground:#ffffff") == 2  # the default and print
    assert style.count(f"--ground:{THEMES['dark']['ground']}") == 2  # the system's and the reader's choice
    assert "@media print" in style
