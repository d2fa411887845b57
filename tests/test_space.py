"Measures of the embedding space where they meet a training: what is watched is that of its epoch."

from see_nb.method.adapters import class_proxies
from see_nb.retrieval.embedding import embed
from see_nb.retrieval.space import space_measures
from see_nb.training.recipes import Recipe
from see_nb.training.training import train

TINY = Recipe(width=4, embedding_size=12, epochs=2, batch_size=24, learning_rate=3e-2, validation=0)


def test_each_epoch_of_a_watched_training_has_the_measures_of_that_epoch(tiny):
    def watch(encoder, objective, train_set, test_set):
        return {
            "seen": space_measures(
                embed(encoder, train_set), train_set.labels, class_proxies(objective)
            ),
            "unseen": space_measures(embed(encoder, test_set), test_set.labels),
        }

    run = train(TINY, watch=watch, progress=False)
    first, last = run.row["history"]
    assert first["seen"] != last["seen"]
    assert last["seen"] == space_measures(
        embed(run.model, tiny["train"]), tiny["train"].labels, class_proxies(run.objective)
    )
    assert last["unseen"] == space_measures(embed(run.model, tiny["test"]), tiny["test"].labels)
    assert last["seen"]["density"] < 1  # classes are told apart
