"""What training needs on more ranks than there are here: formulas, and one rank of thousands.

The planner: every way to spread a job over a cluster, judged at once.

    planner.py         plan(job), judge(job, layout): which fit, which is fastest, why others lose
    what_if.py         what one more GPU, node or memory size would change; cluster_size.py
    job.py             a Job: model, cluster, batch, software
    layouts.py         one Layout, and many as arrays
    model_shape.py     sizes and parameters of any model; hf_config.py reads them from config.json
    cluster.py         what GPUs and links can do: gpus.json, or your numbers, or calibrate.py's
    layout_space.py    all layouts that divide
    layout_memory.py   bytes by category in the fullest rank
    layout_time.py     seconds of a step: computing, communication, bubble, optimizer, offload
    layer_time.py      of one layer, by its operators; kernels.py, communication.py: their parts
    layout_bytes.py    bytes of each collective that a rank sends in a step
    published.py       runs that others have measured, as jobs and layouts; regret.py
    launch.py          files to start a layout with; report.py, command.py: ``dlcourse plan``

One rank of thousands: scale.py, fake_group.py, fake_ledger.py; scale_agreement.py holds the planner
against it. Orders of techniques: technique_order.py, technique_sets.py.
"""
