# docker build -t erasediff-lora . && docker run --rm -v "$PWD/runs:/work/runs" erasediff-lora demo --concept cat
# With CUDA: --build-arg INDEX=https://pypi.org/simple, and `docker run --gpus all`.
FROM python:3.11-slim

ARG INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE /src/
COPY recipes /src/recipes
COPY erasediff_lora /src/erasediff_lora
RUN pip install --no-cache-dir --extra-index-url "$INDEX" '/src[8bit]' && rm -r /src

# Small models are fastest on one thread; a GPU does not mind.
ENV OMP_NUM_THREADS=1
RUN useradd --create-home --uid 1000 someone && mkdir /work && chown someone /work
USER someone
WORKDIR /work
ENTRYPOINT ["erasediff-lora"]
CMD ["demo", "--concept", "cat"]
