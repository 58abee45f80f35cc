registry_cfg = {
    "url" : "ghcr.io", 
    "user": "_put_username", 
    "token": "_put_token",
    "images_prefix": "ghcr.io/eflows4hpc/"
} 

repositories_cfg = {
    "workflow_repository":"https://github.com/eflows4hpc/workflow-registry.git", 
    "software_repository":"/path/to/software-catalog/" 
    }

build_cfg = {
    "tmp_folder":"/path/to/tmp", # path where images are created 
    "builder_home": "/path/to/image_creation/", # path where the Container Image Creation is installed
    "base_image": "ghcr.io/eflows4hpc/spack_base:0.19.2", 
    "dockerfile": "Dockerfile.spack",  
    "spack_cfg":"/path/to/software-catalog/cfg",
    "max_concurrent_builds" : 3, # number of concurrent builds (No used in library mode)
    "singularity_sudo" : True # Indicates if singularity build must be done ir sudo mode
    }

database = 'sqlite:///db.sqlite'
port = 5000
host = '0.0.0.0'
application_root = 'image_creation'
secret_key = '_put_here_the_secret_key'
captcha_web_site_key = '_put_captcha_web_site_key'
captcha_site_key='_put_captcha_site_key'
