import pathlib,re
for d in pathlib.Path('adapters').glob('*/tests/integration'):
    for f in d.glob('*.rs'):
        if f.name=='main.rs': continue
        s=f.read_text()
        s=s.replace('include_str!("../','include_str!("../../').replace('include_str!("support/','include_str!("../support/')
        for m in re.findall(r'^use crate::(\w+)(?: as (\w+))?;\n',s,flags=re.M):
            mod,alias=m[0],m[1] or m[0]
            if mod not in ('support','store','claimed','expiry'): continue
            line=f'use crate::{mod} as {alias};\n' if m[1] else f'use crate::{mod};\n'
            s2=re.sub(rf'^(\s*)use {alias}::',rf'\1use crate::{mod}::',s,flags=re.M)
            rest=re.sub(rf'crate::{mod}::','',s2)
            if not re.search(rf'\b{alias}::',rest):
                s2=s2.replace(line+'\n','',1) if (line+'\n') in s2 else s2.replace(line,'',1)
            s=s2
        f.write_text(s)
p=pathlib.Path('adapters/postgres/tests/integration/main.rs'); s=p.read_text().replace('#[path = "../support/expiry.rs"]\nmod expiry;','#[path = "../support/expiry.rs"]\nmod rows;'); p.write_text(s)
p=pathlib.Path('adapters/postgres/tests/integration/expiry.rs'); s=p.read_text().replace('crate::expiry','crate::rows'); p.write_text(s)
