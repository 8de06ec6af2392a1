"""ab.py LIB... -- shapes: contenders in turn. Shapes from env SHAPES: 'b,sq,sk,h,hk,d,causal;...'"""
import os, sys, importlib, statistics
import numpy as np, cupy as cp, ml_dtypes
bf16 = np.dtype(ml_dtypes.bfloat16)
def load(path):
    for m in [m for m in sys.modules if m.split('.')[0]=='pyflash3']: del sys.modules[m]
    os.environ['PYFLASH3_LIBRARY']=os.path.abspath(path)
    return importlib.import_module('pyflash3')
libs={os.path.basename(os.path.dirname(p)):load(p) for p in sys.argv[1:]}
fa3=None
if os.environ.get('FA3'):
    sys.path.insert(0,os.environ['PEERS']); import peers, torch; fa3=peers.load_dense(os.environ['PEERS'])[0]
flush=cp.empty(64<<20,cp.float32)
rounds=int(os.environ.get('ROUNDS','15'))
for shape in os.environ['SHAPES'].split(';'):
    b,sq,sk,h,hk,d,c=map(int,shape.split(',')[:7])
    win=(-1,-1) if len(shape.split(','))<8 else (int(shape.split(',')[7]),0)
    q=cp.random.standard_normal((b,sq,h,d),dtype=cp.float32).astype(bf16)
    k,v=(cp.random.standard_normal((b,sk,hk,d),dtype=cp.float32).astype(bf16) for _ in range(2))
    outs={n:cp.empty(q.shape,bf16) for n in libs}
    calls={n:(lambda L=L,n=n: L.flash_attn_func(q,k,v,causal=bool(c),window_size=win,out=outs[n])) for n,L in libs.items()}
    if fa3:
        tq,tk,tv=(torch.from_dlpack(x.view(np.uint16) if False else x) if False else torch.as_tensor(x.view(cp.uint16),device='cuda').view(torch.bfloat16) for x in (q,k,v))
        calls['FA3']=lambda: fa3(tq,tk,tv,causal=bool(c),window=(win[0],0) if win[0]>=0 else (-1,-1))
    t={n:[] for n in calls}
    for r in range(rounds+3):
        for n,f in calls.items():
            flush.fill(0); e0,e1=cp.cuda.Event(),cp.cuda.Event()
            e0.record(); f(); e1.record(); e1.synchronize()
            if r>=3: t[n].append(cp.cuda.get_elapsed_time(e0,e1)*1e3)
    m={n:statistics.median(x) for n,x in t.items()}
    base=outs[next(iter(libs))].astype(cp.float32)
    diff={n:float(abs(o.astype(cp.float32)-base).max()) for n,o in outs.items()}
    fl=4*b*h*sq*sk*d/(2 if c else 1)
    print(shape.ljust(34),' '.join(f"{n}={x:.1f}us({fl/x/1e6:.0f})" for n,x in m.items()),'maxdiff',{n:round(x,4) for n,x in diff.items()},flush=True)
