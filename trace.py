import ctypes, sys, os, collections
import numpy as np, cupy as cp, ml_dtypes
import pyflash3
from pyflash3 import flash_attn_func
lib = ctypes.CDLL(os.environ['PYFLASH3_LIBRARY'])
buf = np.zeros((132,4,2048,2), np.uint32)
bf16 = np.dtype(ml_dtypes.bfloat16)
for b,s,h,d,causal in [(32,512,16,128,False),(32,512,16,128,True),(16,1024,16,128,False),(8,2048,16,128,True)]:
    q,k,v = (cp.random.standard_normal((b,s,h,d),dtype=cp.float32).astype(bf16) for _ in range(3))
    for _ in range(3): flash_attn_func(q,k,v,causal=causal)
    cp.cuda.runtime.deviceSynchronize()
    lib.flash3_trace(ctypes.c_void_p(buf.ctypes.data))
    iv = collections.defaultdict(list); tiles=[]
    for blk in range(132):
        for wg in (1,2):
            ev = buf[blk,wg]; n = int(np.argmax(ev[1:,1]==0)) if (ev[:,1]==0).any() else 2047
            ids=ev[:n,0].astype(int); t=ev[:n,1].astype(np.int64)
            last1=None
            for i in range(n-1):
                if 60 < i < n-30: iv[(wg,ids[i],ids[i+1])].append(int((t[i+1]-t[i])%2**32))
                if ids[i]==1:
                    if last1 is not None and 60<i<n-30: tiles.append(int((t[i]-last1)%2**32))
                    last1=t[i]
    print(f"== b{b} s{s} h{h} d{d} causal={causal}: median tile {np.median(tiles):.0f} mean {np.mean(tiles):.0f} n {len(tiles)}")
    for key in sorted(iv):
        x=np.array(iv[key]); print(key, len(x), f"mean {x.mean():.0f} median {np.median(x):.0f} p90 {np.percentile(x,90):.0f}")
    # timeline
    blk=60; start=None
    rows=[]
    for wg in (1,2):
        ev=buf[blk,wg]; 
        ones=[i for i in range(2047) if ev[i,0]==1 and ev[i,1]]
        a,e=ones[6],ones[8]
        for i in range(a,e): rows.append((int(ev[i,1]),wg,int(ev[i,0])))
    rows.sort(); t0=rows[0][0]
    print(' '.join(f"{t-t0}:{'AB'[w-1]}{i}" for t,w,i in rows))
    buf[:]=0
