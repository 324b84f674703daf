"""vLLM behind a pipe, for `--vllm`: run by the Python of vLLM's environment, which need not have this package.

    PYTHON benchmarks/vllm_worker.py FOLDER LONGEST

Reads a JSON object a line, {"prompts": [[token]], "budgets": [tokens]}, and answers with {"wall": s, "cpu": s} of its
generation. Rows are drawn at temperature 1 and no token ends one; prompts are computed once for all their rows.
"""

import json
import os
import sys
import time

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    folder, longest = sys.argv[1], int(sys.argv[2])
    # Neither what vLLM prints nor the processes that it starts may use these.
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder,
        dtype="float32",
        max_model_len=longest,
        max_num_seqs=256,
        kv_cache_memory_bytes=2 << 30,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )
    for line in questions:
        asked = json.loads(line)
        settings = [
            SamplingParams(max_tokens=budget, ignore_eos=True, logprobs=0, detokenize=False)
            for budget in asked["budgets"]
        ]
        rows = [{"prompt_token_ids": prompt} for prompt in asked["prompts"]]
        engine.reset_prefix_cache()
        wall, cpu = time.perf_counter(), time.process_time()
        made = engine.generate(rows, settings, use_tqdm=False)
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        assert [len(row.outputs[0].token_ids) for row in made] == asked["budgets"]
        print(json.dumps(took), file=answers, flush=True)


if __name__ == "__main__":
    main()
