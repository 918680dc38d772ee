import pathlib,re,subprocess,sys
root=pathlib.Path('.')
keep={'rabbitmq':{'ack_timeout'},'kafka':set(),'postgres':{'conformance'},'sqs':set(),'file':set(),'sqlite':{'conformance'},
 'redis':{'conformance','conformance_acl','conformance_cluster','measure'},'kafka-transactions':set()}
for a,k in keep.items():
    t=root/'adapters'/a/'tests'
    d=t/'integration'; d.mkdir()
    mods=[]; paths={}
    for f in sorted(t.glob('*.rs')):
        n=f.stem
        if n in k: continue
        subprocess.check_call(['git','mv',str(f),str(d/f.name)])
        s=(d/f.name).read_text()
        s=re.sub(r'^#!\[allow\(clippy::unwrap_used(, clippy::print_stdout)?\)\]\n\n?','',s,flags=re.M,count=1)
        def fix(m):
            path,name=m.group(1),m.group(2)
            if 'examples' in path:
                return f'#[path = "../{path}"]'+m.group(3)+f'mod {name};'
            stem=pathlib.Path(path).parent.name if path.endswith('mod.rs') else pathlib.Path(path).stem
            paths[stem]=path
            return f'use crate::{stem};' if stem==name else f'use crate::{stem} as {name};'
        s=re.sub(r'#\[path = "([^"]+)"\](\n(?:#\[[^\n]*\]\n)*)mod (\w+);',lambda m: fix(type('M',(),{'group':lambda self,i:[None,m.group(1),m.group(3),m.group(2)][i]})()),s)
        if re.search(r'^mod support;\n',s,flags=re.M):
            paths['support']='support/mod.rs'
            s=re.sub(r'^mod support;\n','use crate::support;\n',s,flags=re.M)
        (d/f.name).write_text(s); mods.append(n)
    out=f'//! The tests of this adapter on real servers: one executable, so that they share the servers.\n#![allow(clippy::unwrap_used)]\n\n'
    decl=[f'mod {m};' for m in mods]
    for n,p in sorted(paths.items()):
        decl.append(f'#[path = "../{p}"]\nmod {n};')
    out+='\n'.join(decl)+'\n'
    (d/'main.rs').write_text(out)
