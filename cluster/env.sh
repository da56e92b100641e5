# What a shell on a node must know. cluster.yaml puts a line into ~/.bashrc that reads this file, because Ray runs
# every command there, `ray submit` too, as: bash --login -c -i 'source ~/.bashrc; ... && (python ~/train.py ...)'

# Ray copies train.py alone to the home folder and runs it there: this says where params.yaml and data/ are.
export GENMODELS_ROOT="$HOME/genmodels-project"
# `python`, `pip` and `ray` are those of the locked environment.
export PATH="$GENMODELS_ROOT/.venv/bin:$PATH"
# Train on the cluster that runs, instead of starting a second one on the head.
export RAY_ADDRESS=auto
# Without this, a head that `ray start` started runs anybody's jobs. The token lies in ~/.ray/auth_token.
export RAY_AUTH_MODE=token
# Runs and versions go to this MLflow server instead of the head's mlflow.db. At this address: your own `make ui`, as
# long as you keep a way open for it:  ssh -N -R 5000:127.0.0.1:5000 train@192.168.1.10
# export MLFLOW_TRACKING_URI=http://127.0.0.1:5000
