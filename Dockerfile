# How to build and run it, with and without CUDA: docs/install.md.
FROM python:3.11-slim

ARG INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE /src/
COPY recipes /src/recipes
COPY erasediff_lora /src/erasediff_lora
RUN pip install --no-cache-dir --extra-index-url "$INDEX" '/src[8bit]' && rm -r /src

# Small models are fastest on one thread; a GPU does not mind.
ENV OMP_NUM_THREADS=1
# Whoever runs it, by --user, has a home, a name and a folder to write to.
ENV HOME=/home/someone USER=someone
RUN useradd --create-home --uid 1000 someone && mkdir /work && chmod 1777 /work /home/someone
USER someone
WORKDIR /work
ENTRYPOINT ["erasediff-lora"]
CMD ["demo", "--concept", "cat"]
