"""Which tests of the old rooms run: a quick choice that guards users' answers.

All others are there to be read until their room is replaced; run by nobody, they are not even
collected.  ``RUN`` has, for each file, the tests that are collected; slow ones need ``-m slow``.
"""

import contextlib

import pytest

RUN = {
    "test_common.py": {"test_common_checks"},
    "test_conditional.py": {
        "test_categories_are_normalised_and_scored_by_their_probability",
        "test_cdf_is_monotone_and_the_integral_of_the_density",
        "test_conformal_rank_is_exact",
        "test_density_of_mixed_targets_sums_to_one",
        "test_units_of_the_target_change_the_density_by_the_jacobian",
    },
    "test_density.py": {
        "test_bad_input_is_refused_by_name",
        "test_bad_parameters_are_refused_by_name",
        "test_bound_is_not_beaten",
        "test_divergence_falls_back_to_the_best_state_or_raises",
        "test_error_curve_of_gaussian_data_is_the_closed_form",
        "test_gpu_and_cpu_agree",
        "test_interrupt_leaves_no_half_fitted_estimator",
        "test_mass_is_at_most_one",
        "test_pipeline_moves_the_density_by_its_jacobian",
        "test_rows_do_not_depend_on_each_other",
    },
    "test_discrete.py": {
        "test_bad_tables_are_named",
        "test_probabilities_of_all_states_sum_to_nearly_one",
        "test_unknown_levels_are_unlikely_or_an_error",
    },
    "test_ensemble.py": {
        "test_probabilities_of_all_states_sum_to_about_one",
        "test_weights_are_on_the_simplex_and_never_worse_than_one_expert",
    },
    "test_faults.py": {
        "test_disk_that_fills_up_leaves_the_old_file_whole",
        "test_interrupt_at_any_batch_leaves_no_fit_and_no_threads",
        "test_loss_that_is_no_number_ends_in_the_best_state_or_an_error",
        "test_scoring_goes_on_with_less_memory",
    },
    "test_imputer.py": {
        "test_complete_tables_are_returned_as_they_are",
        "test_rows_are_independent_and_observed_entries_stay",
        "test_rubins_rules",
    },
    "test_information.py": {
        "test_copula_has_the_densities_of_elliptical_distributions",
        "test_tables_of_categories_by_enumeration",
    },
    "test_likelihood.py": {
        "test_cutting_the_range_never_flatters",
        "test_errors_are_calibrated_and_as_small_as_asked",
        "test_exact_denoiser_gives_exact_log_density",
    },
    "test_marginals.py": {
        "test_implied_density_integrates_to_one",
        "test_maps_are_smooth_bijections",
    },
    "test_missing.py": {
        "test_conditional_plus_marginal_is_the_joint",
        "test_density_of_a_part_is_the_integral_of_the_joint",
        "test_totals_and_marginals_of_a_discrete_table_by_enumeration",
    },
    "test_missing_references.py": {
        "test_each_step_raises_the_likelihood_of_what_is_observed",
        "test_mean_is_right_where_entries_are_missing_at_random",
    },
    "test_outlier.py": {
        "test_errors_name_the_parameter",
        "test_predictions_are_p_values_at_the_rate",
        "test_threshold_agrees_with_the_p_values_of_tied_scores",
    },
    "test_persistence.py": {
        "test_foreign_files_are_refused",
        "test_loaded_estimator_is_the_saved_one",
        "test_truncated_file_is_refused",
    },
    "test_pretrained.py": {
        "test_a_pretrained_denoiser_gives_the_exact_log_density",
        "test_every_convention_gives_the_exact_noise",
    },
    "test_reference_contract.py": {
        "test_denoiser_is_the_conditional_mean",
        "test_marginal_and_conditional_make_the_joint",
        "test_standardised_reference_moves_by_the_jacobian",
        "test_total_is_one",
    },
    "test_references.py": {
        "test_denoisers_are_conditional_means",
        "test_log_densities_match_scipy",
    },
    "test_security.py": {"test_source_executes_and_unpickles_nothing"},
}


def pytest_ignore_collect(collection_path):
    """Leave out the files of which no test runs."""
    name = collection_path.name
    return True if name.startswith("test_") and name not in RUN else None


def pytest_collection_modifyitems(config, items):
    """Leave out the other tests of the files of which some run."""
    left_out = [
        item
        for item in items
        if item.path.name in RUN
        and item.path.parent.name == "first"
        and item.originalname not in RUN[item.path.name]
    ]
    config.hook.pytest_deselected(items=left_out)
    unwanted = set(left_out)
    items[:] = [item for item in items if item not in unwanted]


@pytest.fixture(scope="module")
def brief_fits(request):
    """Make searches and calibrations of fits short, in modules whose laws hold for any fit.

    Slow tests have them as they are, and so have tests with `usual_fits`.
    """
    from first import brief

    in_unit_suite = request.config.option.markexpr == "not slow"
    with brief.choices() if in_unit_suite else contextlib.nullcontext():
        yield


@pytest.fixture
def usual_fits():
    """Have fits as they are, in a test of accuracy in a module with `brief_fits`."""
    from first import brief

    with brief.usual_choices():
        yield
