"""The transformers Trainer: bit-identical training, every trigger, resume, PEFT."""

import numpy as np
import pytest
import torch
import transformers as tf

import repaudit as ra
from repaudit.errors import LayerPathError

PROBE_IDS = torch.randint(1, 32, (6, 8), generator=torch.Generator().manual_seed(3))
PROBE = ra.ProbeSet.from_tensors({"input_ids": PROBE_IDS})
DATA = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(1, 32, (16, 8), generator=torch.Generator().manual_seed(5))
]


def gpt2():
    tf.set_seed(0)
    return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16))


def trained(folder, *callbacks, model=None, resume=None, **options):
    model = model or gpt2()
    tf.set_seed(1)
    defaults = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    trainer = tf.Trainer(
        model=model,
        args=tf.TrainingArguments(output_dir=str(folder), **(defaults | options)),
        train_dataset=DATA,
        eval_dataset=DATA[:4],
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return {name: value.clone() for name, value in model.state_dict().items()}


def audits(store, trigger=None, specs=("transformer.h[*]",), **options):
    trigger = trigger or ra.AuditTrigger(every_n_steps=1, at_start=True)
    return ra.AuditTrainerCallback(store, "seed0", PROBE, list(specs), trigger, **options)


def record(store):
    return ra.open_store(store)["models/seed0"].dataset.load()


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}], ids=str)
def test_training_is_bit_identical(tmp_path, options):
    plain = trained(tmp_path / "a", **options)
    audited = trained(tmp_path / "b", audits(tmp_path / "s.zarr"), **options)
    assert all(torch.equal(value, audited[name]) for name, value in plain.items())
    steps = 4 if "gradient_accumulation_steps" in options else 8
    assert record(tmp_path / "s.zarr").step.values.tolist() == list(range(steps + 1))


def test_the_last_audit_is_the_trained_model(tmp_path):
    model = gpt2()
    trained(tmp_path / "a", audits(tmp_path / "s.zarr"), model=model)
    with torch.no_grad():
        expected = model.eval()(input_ids=PROBE_IDS, output_hidden_states=True).hidden_states[1].mean(1)
    found = record(tmp_path / "s.zarr")["transformer.h.0"]
    np.testing.assert_allclose(found[-1], expected, rtol=1e-5, atol=1e-6)


def test_every_trigger_and_one_audit_a_step(tmp_path):
    trigger = ra.AuditTrigger(
        every_n_steps=4, every_n_epochs=1, on_checkpoint=True, on_validation_end=True, at_steps=[3]
    )
    saving = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trained(tmp_path / "a", audits(tmp_path / "s.zarr", trigger), **saving)
    found = record(tmp_path / "s.zarr")
    triggers = {int(step): set(str(t).split(",")) for step, t in zip(found.step, found.trigger.values, strict=True)}
    saved = {"on_checkpoint", "on_validation_end"}
    both = {"every_n_steps", "every_n_epochs"} | saved
    assert triggers == {2: saved, 3: {"at_steps"}, 4: both, 6: saved, 8: both}


def test_resume_neither_loses_nor_repeats_a_step(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    whole = trained(tmp_path / "a", audits(tmp_path / "whole.zarr"), **options)
    trained(tmp_path / "b", audits(tmp_path / "cut.zarr"), **options, max_steps=7)
    checkpoint = str(tmp_path / "b" / "checkpoint-3")
    resumed = trained(tmp_path / "b", audits(tmp_path / "cut.zarr"), resume=checkpoint, **options)
    expected, found = record(tmp_path / "whole.zarr"), record(tmp_path / "cut.zarr")
    assert found.step.values.tolist() == expected.step.values.tolist() == list(range(9))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    np.testing.assert_array_equal(found["transformer.h.1"], expected["transformer.h.1"])


def test_bad_layers_are_raised_before_the_first_step(tmp_path):
    model = gpt2()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LayerPathError, match="'blocks' not found at the top"):
        trained(tmp_path / "a", audits(tmp_path / "s.zarr", specs=["blocks[0]"]), model=model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own call
def test_adapters_of_peft_models_are_seen(tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", lora_dropout=0.1
    )

    def fitted(folder, *callbacks):
        model = peft.get_peft_model(gpt2(), config)
        return model, trained(folder, *callbacks, model=model, learning_rate=0.1)

    _, plain = fitted(tmp_path / "a")
    specs = ["transformer.h[*]", "base_model.model.transformer.h[0].attn"]
    model, audited = fitted(tmp_path / "b", audits(tmp_path / "s.zarr", specs=specs))
    assert all(torch.equal(value, audited[name]) for name, value in plain.items())
    found = record(tmp_path / "s.zarr")
    assert list(found.data_vars) == ["transformer.h.0", "transformer.h.1", "transformer.h.0.attn"]
    with torch.no_grad():
        expected = model.eval()(input_ids=PROBE_IDS, output_hidden_states=True).hidden_states[1].mean(1)
    np.testing.assert_allclose(found["transformer.h.0"][-1], expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found["transformer.h.0"][-1], found["transformer.h.0"][0])  # the adapters moved it


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own call
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_learned_prompts_are_no_tokens_of_the_probe_set(kind):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    model = peft.get_peft_model(gpt2(), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    mask = torch.arange(PROBE_IDS.shape[1]) < torch.arange(3, 3 + len(PROBE_IDS))[:, None]
    specs = ["transformer.h[0]", ra.LayerSpec("transformer.h[0]", reduce="last_token")]
    specs.append(ra.LayerSpec("transformer.h[0]", reduce="all"))
    probe_set = ra.ProbeSet.from_tensors({"input_ids": PROBE_IDS, "attention_mask": mask.long()})
    found = ra.ActivationExtractor(specs).extract(model, probe_set)
    with torch.no_grad():
        states = model(input_ids=PROBE_IDS, attention_mask=mask.long(), output_hidden_states=True).hidden_states[1]
    own = states[:, -PROBE_IDS.shape[1] :]
    torch.testing.assert_close(found["transformer.h.0:all"], own)
    expected = torch.stack([row[kept].mean(0) for row, kept in zip(own, mask, strict=True)])
    torch.testing.assert_close(found["transformer.h.0"], expected)
    expected = torch.stack([row[kept][-1] for row, kept in zip(own, mask, strict=True)])
    torch.testing.assert_close(found["transformer.h.0:last_token"], expected)


def test_ones_own_loop_with_accelerate(tmp_path):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)

    def fitted(recorder):
        model = gpt2()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        model, optimizer = accelerator.prepare(model, optimizer)
        tf.set_seed(1)
        for step, row in enumerate(DATA[:4], 1):
            loss = model(input_ids=row["input_ids"][None], labels=row["labels"][None]).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if recorder is not None:
                recorder.audit(model, step, loss=loss)
        return accelerator.unwrap_model(model).state_dict()

    plain = fitted(None)
    with ra.Recorder(
        store=tmp_path / "s.zarr", model_name="seed0", probe_set=PROBE, layer_specs=["transformer.h[*]"],
        trigger=ra.AuditTrigger(every_n_steps=2),
    ) as recorder:  # fmt: skip
        audited = fitted(recorder)
    assert all(torch.equal(value, audited[name]) for name, value in plain.items())
    assert record(tmp_path / "s.zarr").step.values.tolist() == [2, 4]
    assert np.isfinite(record(tmp_path / "s.zarr").loss).all()


def test_training_again_after_an_interruption(tmp_path):
    class Interrupts(tf.TrainerCallback):
        done = False

        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3 and not self.done:
                self.done = True
                raise KeyboardInterrupt

    model, callback, interrupts = gpt2(), audits(tmp_path / "s.zarr"), Interrupts()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "a", callback, interrupts, model=model)
    trained(tmp_path / "a", callback, interrupts, model=model)
    assert record(tmp_path / "s.zarr").step.values.tolist() == list(range(12))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_steps": 5}, [4]),
        ({"num_train_epochs": 1.5}, [4]),
        ({"gradient_accumulation_steps": 3}, [2, 4]),
        ({"gradient_accumulation_steps": 3, "max_steps": 3}, [2]),
    ],
    ids=str,
)
@pytest.mark.thin(2)
def test_epochs_are_audited_at_their_end_alone(tmp_path, options, expected):
    trained(tmp_path / "a", audits(tmp_path / "s.zarr", ra.AuditTrigger(every_n_epochs=1)), **options)
    found = record(tmp_path / "s.zarr")
    assert found.step.values.tolist() == expected
    assert found.epoch.values.tolist() == list(range(1, len(expected) + 1))


def test_a_second_training_keeps_its_steps_when_it_resumes(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant", "num_train_epochs": 1}
    model, callback = gpt2(), audits(tmp_path / "s.zarr")
    trained(tmp_path / "a", callback, model=model, **options)
    trained(tmp_path / "b", callback, model=model, **options)
    expected = record(tmp_path / "s.zarr")
    assert expected.step.values.tolist() == list(range(9))
    checkpoint = str(tmp_path / "b" / "checkpoint-3")  # of the second training: step 7 of the model
    trained(tmp_path / "b", audits(tmp_path / "s.zarr"), resume=checkpoint, **options)
    found = record(tmp_path / "s.zarr")
    assert found.step.values.tolist() == list(range(9))
    np.testing.assert_array_equal(found["transformer.h.1"], expected["transformer.h.1"])


def test_a_training_without_steps_records_the_untrained_model(tmp_path):
    model = gpt2()
    trained(tmp_path / "a", audits(tmp_path / "s.zarr"), model=model, num_train_epochs=0)
    assert record(tmp_path / "s.zarr").step.values.tolist() == [0]


def test_the_end_of_a_training_is_told(tmp_path, caplog):
    with caplog.at_level("INFO", logger="repaudit"):
        trained(tmp_path / "a", audits(tmp_path / "s.zarr"), max_steps=2)
    (said,) = (record.message for record in caplog.records if "audits of model" in record.message)
    assert said.endswith(f"Next: repaudit analyze {tmp_path / 's.zarr'}")
