//! Recipes one after the other.

use super::common::{Bench, Stopper, blurred, first, piecemeal, recipe, timeless};
use fwi::Error;
use fwi::family::RecipeStart;
use fwi::invert::{Attempt, Settings, Stage, State, StopReason, invert_with_fallbacks, resume_with_fallbacks};
use fwi::misfit::MisfitSpec;
use std::path::Path;

/// L-BFGS for so many evaluations.
fn plain(recipe: &str, start: RecipeStart, evals: u64) -> Attempt {
    let stage = Stage { max_evals: Some(evals), ..Stage::new(recipe, MisfitSpec::L2) };
    let settings = Settings { stages: vec![stage], ..Settings::default() };
    let (recipe, again_below) = (recipe.into(), None);
    Attempt { recipe, start, accept_rms: 1e-4, only_above: None, times: 1, again_below, settings }
}

#[test]
fn a_stalled_recipe_falls_back_and_the_best_is_kept() {
    let bench = Bench::new(2);
    let attempts = [plain("a", RecipeStart::Prior, 5), plain("b", RecipeStart::Gradient, 4), recipe()];
    let run = |attempts: &[Attempt]| invert_with_fallbacks(attempts, &first(), &bench.inversion(2), &mut ()).unwrap();
    let out = run(&attempts);
    let told: Vec<_> = out.attempts.iter().map(|a| (&a.recipe[..], &a.start[..])).collect();
    assert_eq!(told, [("a", "prior"), ("b", "gradient"), ("small", "prior")]);
    let least = out.attempts.iter().filter_map(|a| a.data_rms).fold(f64::INFINITY, f64::min);
    assert!(out.attempts.iter().all(|a| a.kept == (a.data_rms == Some(least))) && out.data_rms == least);
    let counts: Vec<u64> = out.attempts.iter().map(|a| a.evaluations).collect();
    assert_eq!((counts[0], counts[1], counts.iter().sum::<u64>()), (5, 4, out.evaluations));
    // the third is what it would have been alone
    let alone = run(&attempts[2..]);
    assert_eq!(Some(alone.data_rms), out.attempts[2].data_rms);
    let (resumed, runs) = piecemeal(&bench, &attempts);
    assert!(runs > 10 && timeless(&out) == timeless(&resumed), "interruptions change the outcome: {runs}");

    // a start from the best so far goes on where the second ended, and not from the first's map
    let (second, best) = (plain("b", RecipeStart::Prior, 20), plain("c", RecipeStart::Best, 4));
    let attempts = [plain("a", RecipeStart::Prior, 2), second, plain("d", RecipeStart::Prior, 1), best];
    let out = run(&attempts);
    let ended = out.attempts[1].data_rms.unwrap();
    assert!(out.attempts[3].start == "best" && out.attempts[3].data_rms.unwrap() <= ended, "{:?}", out.attempts);
    assert!(out.attempts[3].kept && out.data_rms < 0.99 * ended, "{ended:e}, {:e}", out.data_rms);
    assert_eq!(out.start.vp, blurred());
    let (resumed, _) = piecemeal(&bench, &attempts);
    assert!(timeless(&out) == timeless(&resumed), "interruptions change the outcome");

    // tried again, it goes on from where it came to: as far as in one go, but that L-BFGS forgets; one for maps that are
    // further off is left out
    let again = Attempt { times: 3, ..plain("c", RecipeStart::Best, 6) };
    let near = Attempt { only_above: Some(1e3), ..plain("b", RecipeStart::Prior, 9) };
    let attempts = [plain("a", RecipeStart::Prior, 2), near, again];
    let out = run(&attempts);
    let told: Vec<_> = out.attempts.iter().map(|a| (&a.recipe[..], &a.start[..])).collect();
    assert_eq!(told, [("a", "prior"), ("c", "best"), ("c", "best"), ("c", "best")]);
    assert!(out.attempts.is_sorted_by(|a, b| a.data_rms > b.data_rms), "{:?}", out.attempts);
    let (resumed, _) = piecemeal(&bench, &attempts);
    assert!(timeless(&out) == timeless(&resumed), "interruptions change the outcome");

    // where it must gain more than it does, the next one follows
    let gain = |i: usize| out.attempts[i].data_rms.unwrap() / out.attempts[i - 1].data_rms.unwrap();
    let (first_gain, second_gain) = (gain(1), gain(2));
    assert!(first_gain < second_gain, "{first_gain} {second_gain}");
    let mut attempts = attempts.to_vec();
    attempts[2].again_below = Some(0.5 * (first_gain + second_gain));
    attempts.push(plain("d", RecipeStart::Best, 2));
    let out = run(&attempts);
    let told: Vec<_> = out.attempts.iter().map(|a| &a.recipe[..]).collect();
    assert_eq!(told, ["a", "c", "c", "d"]);
    let (resumed, _) = piecemeal(&bench, &attempts);
    assert!(timeless(&out) == timeless(&resumed), "interruptions change the outcome");

    // a worse second attempt is not kept, one that is good enough is the last
    let out = run(&[plain("a", RecipeStart::Prior, 20), plain("b", RecipeStart::Gradient, 1)]);
    assert!(out.attempts[0].kept && !out.attempts[1].kept && out.evaluations == 21);
    assert_eq!(Some(out.data_rms), out.attempts[0].data_rms);
    let mut good = plain("a", RecipeStart::Prior, 3);
    good.accept_rms = 1.0;
    assert_eq!(run(&[good, plain("b", RecipeStart::Gradient, 1)]).attempts.len(), 1);
}

#[test]
fn a_fall_back_whose_numbers_break_down_loses_nothing() {
    let bench = Bench::new(2);
    let run = |attempts: &[Attempt]| invert_with_fallbacks(attempts, &first(), &bench.inversion(2), &mut ());
    // no wave can be modelled at such velocities
    let mut wild = plain("wild", RecipeStart::Gradient, 4);
    wild.settings.bounds = (12e3, 20e3);
    assert!(matches!(run(std::slice::from_ref(&wild)), Err(Error::Numerical(_))));
    let attempts = [plain("a", RecipeStart::Prior, 5), wild, plain("b", RecipeStart::Best, 4)];
    let out = run(&attempts).unwrap();
    assert!(
        matches!(&out.attempts[1].stop, StopReason::BrokeDown { why } if why.contains("m/s")),
        "{:?}",
        out.attempts
    );
    assert!(out.attempts[1].data_rms.is_none() && out.attempts[2].kept && out.evaluations == 10);
    assert!(out.data_rms <= out.attempts[0].data_rms.unwrap());
    let (resumed, _) = piecemeal(&bench, &attempts);
    assert!(timeless(&out) == timeless(&resumed), "interruptions change the outcome");
}

#[test]
fn limits_span_all_attempts() {
    let bench = Bench::new(2);
    let mut attempts = [plain("a", RecipeStart::Prior, 5), plain("b", RecipeStart::Gradient, 50)];
    attempts.iter_mut().for_each(|a| a.settings.max_evals = Some(8));
    let out = invert_with_fallbacks(&attempts, &first(), &bench.inversion(2), &mut ()).unwrap();
    assert_eq!((out.evaluations, out.attempts[1].evaluations), (8, 3));
    assert_eq!(out.stop, StopReason::MaxEvals { limit: 8 });
    attempts.iter_mut().for_each(|a| a.settings.max_evals = Some(5));
    let out = invert_with_fallbacks(&attempts, &first(), &bench.inversion(2), &mut ()).unwrap();
    assert_eq!((out.evaluations, out.attempts.len()), (5, 1));

    // evaluations that end with an attempt's last are a limit, too, as long as there is more to try
    // an exact map fits these data to the last bit
    let mut attempts = [Attempt { accept_rms: -1.0, ..recipe() }, plain("b", RecipeStart::Gradient, 5)];
    let run = |attempts: &[Attempt], saved: &mut Stopper| {
        invert_with_fallbacks(attempts, &first(), &bench.inversion(2), saved).unwrap()
    };
    let mut saved = Stopper { left: usize::MAX, saved: vec![] };
    let whole = run(&attempts, &mut saved);
    let spent = whole.attempts[0].evaluations;
    assert_ne!(whole.stop, StopReason::MaxEvals { limit: spent });
    attempts.iter_mut().for_each(|a| a.settings.max_evals = Some(spent));
    let cut = run(&attempts, &mut saved);
    assert_eq!((cut.attempts.len(), &cut.stop), (1, &StopReason::MaxEvals { limit: spent }));
    attempts.iter_mut().for_each(|a| a.settings.max_evals = None);
    let state = State::from_bytes(&saved.saved, Path::new("checkpoint")).unwrap();
    let resumed = resume_with_fallbacks(&attempts, "prior", state, &bench.inversion(2), &mut ()).unwrap();
    assert_eq!(timeless(&resumed), timeless(&whole));

    // a checkpoint of other recipes is refused
    let mut attempts = [plain("a", RecipeStart::Prior, 5), plain("b", RecipeStart::Gradient, 50)];
    let mut stopper = Stopper { left: 7, saved: vec![] };
    attempts.iter_mut().for_each(|a| a.settings.max_evals = None);
    assert!(invert_with_fallbacks(&attempts, &first(), &bench.inversion(2), &mut stopper).is_err());
    let state = State::from_bytes(&stopper.saved, Path::new("checkpoint")).unwrap();
    let others = [recipe(), attempts[1].clone()];
    let refused = resume_with_fallbacks(&others, "prior", state, &bench.inversion(2), &mut ()).unwrap_err();
    assert!(refused.to_string().contains("belongs to "), "{refused}");
}
