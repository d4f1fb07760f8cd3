//! What a run leaves behind.

use anyhow::{Context, Result, ensure};
use ballast_e2e::tiny::{fixture, play};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::Path;

fn json(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn the_adapter_is_a_peft_directory() -> Result<()> {
    play(|scene| {
        let targets = ["lora.target_modules=q_proj,down_proj", "cluster.workers=1"];
        scene.train("run", &targets)?;
        let adapter = scene.path("run/adapter");

        let mut files: Vec<_> = fs::read_dir(&adapter)?.map(|e| Ok(e?.file_name())).collect::<Result<_>>()?;
        files.sort();
        ensure!(files.iter().any(|f| f == "adapter_config.json"), "{files:?}");

        let bytes = fs::read(adapter.join("adapter_model.safetensors"))?;
        let tensors = SafeTensors::deserialize(&bytes)?;
        let mut names = tensors.names();
        names.sort_unstable();
        let mut expected = Vec::new();
        for layer in 0..2 {
            for module in ["mlp.down_proj", "self_attn.q_proj"] {
                for factor in ["lora_A", "lora_B"] {
                    expected.push(format!("base_model.model.model.layers.{layer}.{module}.{factor}.weight"));
                }
            }
        }
        ensure!(names == expected, "{names:?}");
        let a = tensors.tensor("base_model.model.model.layers.0.mlp.down_proj.lora_A.weight")?;
        let b = tensors.tensor("base_model.model.model.layers.0.mlp.down_proj.lora_B.weight")?;
        ensure!(a.shape() == [4, 64] && b.shape() == [32, 4], "{:?} {:?}", a.shape(), b.shape());

        let config = json(&adapter.join("adapter_config.json"))?;
        ensure!(config["peft_type"] == "LORA" && config["r"] == 4 && config["lora_alpha"] == 8.0, "{config}");
        let mut modules: Vec<&str> =
            config["target_modules"].as_array().context("target_modules")?.iter().filter_map(Value::as_str).collect();
        modules.sort_unstable();
        ensure!(modules == ["down_proj", "q_proj"], "{config}");
        let base = config["base_model_name_or_path"].as_str().context("base_model_name_or_path")?;
        ensure!(base == fixture("tiny-model").to_string_lossy(), "{base}");
        Ok(())
    })
}

#[test]
fn the_run_directory_holds_report_ledger_and_checkpoints() -> Result<()> {
    play(|scene| {
        scene.train("run", &["cluster.workers=2"])?;
        let run = scene.path("run");
        for name in ["run.json", "ledger", "latest", "report.json", "logs/worker-0.log", "logs/worker-1.log"] {
            ensure!(run.join(name).exists(), "{name} is missing");
        }
        let checkpoints = scene.checkpoints("run")?;
        ensure!(checkpoints.last().is_some_and(|name| name.starts_with("step-00000004.")), "{checkpoints:?}");
        let newest = run.join("checkpoints").join(checkpoints.last().context("no checkpoint")?);
        for name in ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "state.json"] {
            ensure!(newest.join(name).exists(), "{name} is missing in the checkpoint");
        }
        let (published, saved) =
            (run.join("adapter/adapter_model.safetensors"), newest.join("adapter_model.safetensors"));
        ensure!(fs::read(published)? == fs::read(saved)?, "the adapter is not the last checkpoint's");
        json(&run.join("report.json"))?;
        Ok(())
    })
}

#[test]
fn the_report_tells_the_loss_which_falls() -> Result<()> {
    play(|scene| {
        scene.train("run", &["cluster.workers=2", "train.max_steps=40"])?;
        let report = json(&scene.path("run/report.json"))?;
        ensure!(report["finished"] == true && report["steps"] == 40 && report["error_code"].is_null(), "{report}");
        ensure!(report["workers"].as_array().is_some_and(|workers| workers.len() == 2), "{report}");
        let losses: Vec<f64> =
            report["losses"].as_array().context("losses")?.iter().filter_map(Value::as_f64).collect();
        ensure!(losses.len() == 40, "{losses:?}");
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..5]), mean(&losses[35..]));
        ensure!(last < 0.9 * first, "the loss goes from {first} to {last}");
        Ok(())
    })
}

#[test]
fn the_evaluation_is_the_same_for_any_number_of_workers() -> Result<()> {
    play(|scene| {
        fs::write(scene.path("probes.jsonl"), "{\"prompt\": \"How many legs has an owl?\"}\n")?;
        let heldout = format!("eval.heldout={}", fixture("rows.jsonl").display());
        let probes = format!("eval.probes={}", scene.path("probes.jsonl").display());
        let mut evaluations = Vec::new();
        for workers in ["cluster.workers=1", "cluster.workers=3"] {
            let eval = [workers, &heldout, &probes, "eval.heldout_limit=5", "eval.max_new_tokens=8"];
            scene.train(workers, &eval)?;
            evaluations.push(json(&scene.path(workers).join("report.json"))?["evaluation"].clone());
        }
        let evaluation = &evaluations[0];
        ensure!(*evaluation == evaluations[1], "{evaluations:#?}");
        let tuned = evaluation["heldout"]["tuned"]["all"].as_f64().context("tuned NLL")?;
        let base = evaluation["heldout"]["base"]["all"].as_f64().context("base NLL")?;
        ensure!(tuned < base, "four steps on these very rows lift the NLL from {base} to {tuned}");
        let kl = evaluation["heldout"]["kl"].as_array().context("kl")?;
        ensure!(kl.len() == 8 && kl.iter().all(|value| value.as_f64().is_some_and(|v| v > 0.0)), "{kl:?}");
        ensure!(evaluation["probes"]["prompts"] == 1, "{evaluation}");
        Ok(())
    })
}
