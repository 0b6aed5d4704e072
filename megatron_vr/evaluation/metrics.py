def summarise(samples, greedy, bands, k):
    def one(ids):
        n=len(ids)
        return {"accuracy": sum(sum(samples[i])/len(samples[i]) for i in ids)/n, "greedy": sum(greedy[i] for i in ids)/n, f"pass@{k}": sum(any(samples[i]) for i in ids)/n, "questions": n}
    ids=list(samples); r=one(ids); r["standard_error"]=0.0
    r["bands"]={b: one([i for i in ids if bands[i]==b]) for b in sorted({b for b in bands.values() if b})}
    return r
